"""What Bloodbank is compared with, each used as its documentation shows, with confirms."""
