"""What a run did, as a page: report.html and report.md."""
