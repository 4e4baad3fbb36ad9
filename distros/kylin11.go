package distros

func init() {
	d := kylin("V11", "kylin11")
	d.RepoKey = nvidiaKey("35A7D095")
	d.Offers = locked(Offer{Min: 610, Caveat: notLooked}, "guides from 610 on serve Kylin V11 2503, without module streams")
	register(d)
}
