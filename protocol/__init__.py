"""What a frontend and an engine core say to each other: message types, codec, and the two ends of the channel."""
