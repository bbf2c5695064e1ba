// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"testing"

	fakeclient "github.com/cilium/cilium/pkg/k8s/client/testutils"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	k8stesting "k8s.io/client-go/testing"
	mcsv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"
)

// Objects are the Kubernetes objects of a cluster, in upstream's fake clientset.
// They outlive the exporters that read them. fakeclient.FakeClientCommands are
// the commands for a script to change them.
type Objects = fakeclient.FakeClientset

// NewObjects makes a cluster without any objects but, for those who ask for it,
// the CRD of ServiceExports: upstream's exporter does, before it watches them.
func NewObjects(t testing.TB) *Objects {
	t.Helper()
	objects, _ := fakeclient.NewFakeClientset(Log(t))
	// A reaction, since the object tracker of the clientset has no place for CRDs.
	objects.APIExtFakeClientset.PrependReactor("get", "customresourcedefinitions",
		func(action k8stesting.Action) (bool, runtime.Object, error) {
			name := action.(k8stesting.GetAction).GetName()
			if name != "serviceexports.multicluster.x-k8s.io" {
				return false, nil, nil
			}
			crd := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: name}}
			crd.Spec.Versions = []apiextensionsv1.CustomResourceDefinitionVersion{{Name: mcsv1alpha1.SchemeGroupVersion.Version}}
			return true, crd, nil
		})
	return objects
}
