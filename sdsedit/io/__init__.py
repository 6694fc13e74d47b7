"""Files in and out: pictures and masks (`images`), drawings (`svg`), recipes and safe writing (`record`)."""
