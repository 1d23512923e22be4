"""Reports: numbers and masks -> pages, figures and a viewer."""
