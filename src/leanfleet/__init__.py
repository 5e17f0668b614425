"""leanfleet: train one PyTorch network over a fleet of devices that differ in what they can spend."""
