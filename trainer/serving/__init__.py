"""A page on this machine to drop pictures on; what it needs of the network is handed to it as functions."""
