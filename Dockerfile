# From the wheel that `make dist` makes: docker build -t hub-trainer .
# For NVIDIA GPUs: docker build --build-arg EXTRAS=[cuda] -t hub-trainer . ; docker run --gpus all ...
# The base may be another with Python 3.11 to 3.13 and glibc: --build-arg BASE=...
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG EXTRAS=""
COPY constraints.txt dist/*.whl /tmp/
RUN wheel=$(ls /tmp/*.whl) && python -m pip install --no-cache-dir -c /tmp/constraints.txt "$wheel$EXTRAS" && rm /tmp/*.whl
WORKDIR /work
ENTRYPOINT ["hub-trainer"]
