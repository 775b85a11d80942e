"""The one place where the version of Nun stands."""

VERSION = "0.1.0"
