package distros

func init() {
	register(fedora("44", "73CD9B30", locked(Offer{Min: 580, Caveat: notLooked}, "guides 610 to 620 serve Fedora 44, with 580 as the branch to lock")))
}
