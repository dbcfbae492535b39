"""Networks: LKA and VAN, their registration with timm, and every public weights format."""
