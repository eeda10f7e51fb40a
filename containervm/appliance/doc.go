// Package appliance is what an appliance, the VM in which a VCH runs on vSphere, and who installs it have in common: the
// configuration, the key in the ISO, and the status. The program that runs in the VM is cmd/appliance.
//
// # Configuration
//
// The VM's extraConfig has it, under guestinfo keys, packed as wire.Pack does. Inside is a JSON object:
//
//	open    the Config
//	sealed  its Secrets, as JSON, by AES-256-GCM: a nonce of 12 bytes, the ciphertext, the tag. The text of open,
//	        byte for byte, is the additional data
//
// The key is not in the VM's configuration but in its ISO: the file KEY in the root directory, of one block, is a cpio archive
// with the file /key that the boot loader hands to the kernel beside the initramfs, so that the guest needs no driver to
// read it. A build leaves zeros there; WithKey puts the key of one VCH in their place as the ISO is uploaded, ReadKey reads
// it back to change the configuration later.
//
// # Who can read what
//
// Everybody with System.Read on the VM can read its extraConfig, and finds what it was in the events of its past. To read a
// file of a datastore takes Datastore.FileManagement (or an administrator of the host). So with the key in a file of the
// datastore
//
//   - who may only look at the VM, its events or its exported configuration has no secret;
//   - who may change the VM's extraConfig (VirtualMachine.Config.AdvancedConfig), but no file, cannot have the VCH send its
//     password elsewhere: a changed target or thumbprint no longer fits what is sealed, and the appliance does not start.
//
// It does not keep a secret from those who can read both the VM and its ISO, or the memory of the running VM or of its
// snapshots: administrators of vSphere. They could give themselves any user's permissions anyway. An older configuration put back
// as a whole is taken. Nothing secret is on the state disk but what containers keep there.
package appliance
