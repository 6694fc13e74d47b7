"""Files in and out: pictures and masks (`images`), recipes and safe writing (`record`)."""
