"""What is measured: latency, memory, and the statistics that compare them."""
