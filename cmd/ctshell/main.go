package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"gpuguest/internal/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	root, err := lab.BuildContainerRoot(ctx, os.Args[1])
	if err != nil {
		panic(err)
	}
	c, err := lab.StartContainer(ctx, root, lab.ContainerSpec{})
	if err != nil {
		panic(err)
	}
	fmt.Println(c.Host, c.KeyFile)
	os.WriteFile("/tmp/ct/kh", []byte(c.KnownHosts()), 0o600)
	<-ctx.Done()
	fmt.Println(c.Close(ctx))
}
