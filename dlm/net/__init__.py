"""One ordered, lossless connection per peer: messages, calls with replies, bulk payloads."""
