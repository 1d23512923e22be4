"""The inference room: windows, mirrors, masks on the original grid."""
