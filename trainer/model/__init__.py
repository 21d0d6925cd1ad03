"""Networks: backbones with their contract, the head, what of them trains, and where they can be cut."""
