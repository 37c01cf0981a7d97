"""Who is a member, in which view, and until when our lease holds."""
