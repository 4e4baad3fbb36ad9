# Packer 1.7 and newer fetch the builder with "packer init"; older ones have it built in and do without this file.
packer {
  required_plugins {
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = ">= 1.0.0"
    }
  }
}
