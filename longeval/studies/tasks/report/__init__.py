"""What a report says of downstream tasks."""
