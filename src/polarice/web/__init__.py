"""A local page over a project folder: jobs, class averages, maps, micrographs; it does what commands do."""
