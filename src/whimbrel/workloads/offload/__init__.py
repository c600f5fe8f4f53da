"""What the services have in common to which a phone offloads its pictures (paper `coordinated`): the half in the
container (`server`) and the half at the user (`phone`)."""
