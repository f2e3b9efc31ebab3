"""The door for satellites: Home Assistant's own way to speech and answers, over one TCP port."""
