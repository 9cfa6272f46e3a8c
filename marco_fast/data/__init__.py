"""Fine-tuning data from searches."""
