"""What the training loop of `helper_functions` stands on: devices, the step of a batch, checks of settings."""
