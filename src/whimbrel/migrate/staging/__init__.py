"""Memory and images as files on their way: layers, how they are shipped, and who takes them in."""
