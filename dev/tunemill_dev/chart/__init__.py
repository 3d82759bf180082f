"""What is generated from the chart: the page of its values, the manifest for those without Helm, and golden files."""
