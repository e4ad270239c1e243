"""Programs that pilot starts and hands secrets to."""
