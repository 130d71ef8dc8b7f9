"""What networks cost, and reports of what they did."""
