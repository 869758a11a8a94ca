"""The commands, one file each; heavy imports only inside them."""
