"""The launcher: finds devices, shows a plan, starts and supervises msrun. No MindSpore here."""
