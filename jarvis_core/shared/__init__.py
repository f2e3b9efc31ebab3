"""State that several workers share: values and mail through Redis, and statistics through memory."""
