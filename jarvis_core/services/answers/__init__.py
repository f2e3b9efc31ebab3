"""What every language model's answer has in common, whatever server it comes from: its text, its end, its errors."""
