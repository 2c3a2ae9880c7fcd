"""The stream rules: from queries, clicks and ratings to examples, drift reports, retrain commands and splits."""
