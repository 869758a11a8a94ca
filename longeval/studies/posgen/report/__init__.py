"""What a report says of PosGen's cells."""
