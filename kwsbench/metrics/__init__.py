"""From frame scores to detections, and from detections to FRR, FDR and false accepts per hour."""
