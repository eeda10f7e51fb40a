package compat

// onVSphere are the scenarios that are about vSphere, alone or as well.
var onVSphere = []scenario{
	{1, "pull busybox/nginx/ubuntu", []string{"cmd/vic TestDockerVSphere/images", "layerstore/vsphere TestMirror", "layerstore/vsphere TestPublish"}, ""},
	{16, "CPU and memory", []string{"cmd/vic TestDockerVSphere/CPUs and memory", "containervm/vsphere TestVM"}, ""},
	{18, "parallel create same name", []string{"cmd/vic TestDockerVSphere/one name"}, ""},
	{19, "no command", []string{"cmd/vic TestDockerVSphere/no command"}, ""},
	{24, "OOB power on/off/destroy", []string{"cmd/vic TestDockerVSphere/others at work", "cmd/vic TestDockerVSphere/power off", "cmd/vic TestDockerVSphere/power on", "containervm/vsphere TestOthers", "containervm/vsphere TestContainer/deleted by somebody"},
		"the container of a VM that somebody has destroyed stays in the list, as ended, until it is removed"},
	{32, "ps", []string{"cmd/vic TestDockerVSphere/listed", "cmd/vic TestDockerVSphere/create", "cmd/vic TestDockerVSphere/network", "cmd/vic TestDockerVSphere/size", "cmd/vic TestDockerVSphere/static addresses"}, ""},
	{33, "rm", []string{"cmd/vic TestDockerVSphere/removed", "cmd/vic TestDockerVSphere/shared volumes", "containervm/vsphere TestVM"}, ""},
	{34, "rename", []string{"cmd/vic TestDockerVSphere/renamed", "cmd/vic TestDockerVSphere/renamed while it runs", "containervm/vsphere TestVM"}, ""},
	{35, "inspect", []string{"cmd/vic TestDockerVSphere/restart of the server", "cmd/vic TestDockerVSphere/container networks", "cmd/vic TestDockerVSphere/network"}, ""},
	{37, "networks", []string{"cmd/vic TestDockerVSphere/networks", "cmd/vic TestDockerVSphere/network in use", "containervm/network TestSegment"}, ""},
	{42, "container-network and firewall levels", []string{"cmd/vic TestDockerVSphere/levels", "cmd/vic TestDockerVSphere/DHCP", "bench/vcsim/bridge TestPortGroups", "tether TestFilter", "containervm/network TestExternalDHCP"}, ""},
	{43, "volume create options", []string{"cmd/vic TestDockerVSphere/volumes", "layerstore/vsphere TestVolumes", "layerstore TestVolumeOptions"}, ""},
	{45, "volume ls/rm", []string{"cmd/vic TestDockerVSphere/volumes"}, ""},
	{51, "create full params + defaults + duplicates", []string{"cmd/vic-machine TestLife", "containervm/vch TestCreateDelete", "containervm/vch TestCreateFails", "cmd/vic-machine TestValidation/folder of somebody else"}, ""},
	{52, "validation matrix", []string{"cmd/vic-machine TestValidation"}, ""},
	{53, "delete", []string{"containervm/vch TestDelete", "containervm/vch TestDeleteAgain"}, ""},
	{54, "inspect and ls", []string{"cmd/vic-machine TestLife", "cmd/vic-machine TestValidation/compute resource"}, ""},
	{55, "TLS", []string{"cmd/vic-machine TestLife", "cmd/vic-machine TestChange", "cmd/vic-machine TestCertificates", "cmd/vic TestMutualTLS"}, ""},
	{56, "configure and quotas", []string{"cmd/vic-machine TestChange", "cmd/vic-machine TestLimits", "containervm TestContainerLimit", "containervm TestStorageQuota", "containervm/vsphere TestContainerBytes"}, ""},
	{57, "upgrade", []string{"cmd/vic-machine TestChange", "containervm/vch TestChangesAtOnce", "cmd/appliance TestInstall/upgrade", "cmd/appliance TestInstall/rollback", "cmd/appliance TestInstall/broken upgrade", "cmd/appliance TestPowerCut"}, ""},
	{60, "stress (200 runs and 1,000 volumes with NIGHTLY=1)", []string{"cmd/vic TestDockerVSphere/stress", "containervm/vsphere TestCalls", "layerstore/vsphere TestPublishAtOnce"}, ""},
	{61, "host affinity (25-01, 25-02)", []string{"cmd/vic-machine TestAffinityGroup", "containervm/vch TestGroupCreate", "containervm/vch TestGroupConfigure", "containervm/vsphere TestGroup", "containervm/vsphere TestGroupFails", "containervm/vmgroup TestAtOnce", "cmd/appliance TestInstall",
		"cmd/vic TestDockerVSphere/VM group"}, ""},
}
