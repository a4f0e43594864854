"""What happens beside the training itself: its history, its safety, and what is watched."""
