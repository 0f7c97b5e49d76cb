"""What big_vision's and vision_transformer's `.npz` trees are called, and which model they are."""
