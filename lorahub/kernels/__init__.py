"""The linear algebra under the methods. Submodules that compute import torch; `stack` does not."""
