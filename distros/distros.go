package distros
