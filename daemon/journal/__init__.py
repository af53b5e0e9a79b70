"""What outlives every process: requests that change something, their outcomes, and adapters' snapshots."""
