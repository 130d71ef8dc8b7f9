"""The networks, one file per family. Importing this registers them with timm."""
