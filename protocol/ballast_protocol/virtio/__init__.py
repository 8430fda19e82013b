"""virtio: feature bits, the split ring's layout, and the balloon device's own structures."""
