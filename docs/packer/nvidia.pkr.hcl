# An image with the NVIDIA driver in it, baked with Packer: its machine, its login, gpuguest's work. See ../packer.md.

variable "image" {
  type        = string
  description = "Cloud image to start from: a URL or a path."
}

variable "image_checksum" {
  type        = string
  description = "Its checksum, as in sha256:..."
}

variable "seed" {
  type        = string
  description = "Folder with cloud-init's user-data and meta-data; the user-data lets the key in."
}

variable "private_key" {
  type        = string
  description = "File of the private key for that login."
}

variable "user" {
  type    = string
  default = "debian"
}

variable "gpus" {
  type        = string
  default     = "--device 10de:1eb8"
  description = "The GPUs that machines from the image will have, a --device for each."
}

source "qemu" "nvidia" {
  iso_url              = var.image
  iso_checksum         = var.image_checksum
  disk_image           = true
  disk_size            = "16G"
  format               = "qcow2"
  output_directory     = "output"
  vm_name              = "nvidia.qcow2"
  headless             = true
  memory               = 4096
  http_directory       = var.seed
  qemuargs             = [["-smbios", "type=1,serial=ds=nocloud-net;s=http://{{ .HTTPIP }}:{{ .HTTPPort }}/"]]
  ssh_username         = var.user
  ssh_private_key_file = var.private_key
  ssh_timeout          = "20m"
  shutdown_command     = "sudo cloud-init clean --logs && sudo truncate -s 0 /etc/machine-id && sudo rm -f /etc/ssh/ssh_host_* && sudo shutdown -P now"
}

build {
  sources = ["source.qemu.nvidia"]

  # The guest is new, so its host key is known to nobody: it is noted in a file of this build, and refused if it
  # changes.
  provisioner "shell-local" {
    environment_vars = [
      "GUEST_HOST=${build.Host}",
      "GUEST_PORT=${build.Port}",
      "GUEST_USER=${build.User}",
      "GUEST_KEY=${var.private_key}",
      "GUEST_GPUS=${var.gpus}",
    ]
    inline = [
      "set -eu; dir=$(mktemp -d); trap 'rm -rf \"$dir\"' EXIT",
      "gpuguest install --host \"$GUEST_HOST\" --port \"$GUEST_PORT\" --user \"$GUEST_USER\" --identity \"$GUEST_KEY\" --known-hosts \"$dir/known_hosts\" --ssh-config none --no-gpu $GUEST_GPUS",
    ]
  }

  # The image boots, and all that can be proved without a GPU is.
  post-processor "shell-local" {
    inline = ["gpuguest smoke output/nvidia.qcow2 --junit smoke.xml"]
  }
}
