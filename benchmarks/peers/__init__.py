"""What others do, to be measured against."""
