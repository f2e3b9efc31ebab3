"""What workers share."""
