package distros

func init() {
	d := kylin("V10", "kylin10")
	d.Frozen = "it is served up to branch 590"
	d.Offers = streamed(Offer{Branches: []int{570, 575, 580, 590}, Caveat: notLooked}, "guide 590 serves Kylin V10 SP3 2403, with module streams")
	register(d)
}
