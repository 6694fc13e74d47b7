"""Many edits: a manifest of jobs, a store that loses none, engines that do them, a sheet that shows them."""
