"""The drop-ins for torch.nn.utils and `measure`: they act on what they are given, once."""
