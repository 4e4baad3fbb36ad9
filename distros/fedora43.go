package distros

func init() {
	d := fedora("43", "1940C73E", locked(Offer{Branches: []int{580, 590, 595}, Caveat: notLooked},
		"its CUDA packages end at 13.2.2, whose driver is of branch 595"))
	d.Frozen = "it gets no new drivers since Fedora 44 was taken up"
	register(d)
}
